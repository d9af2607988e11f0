import sys
import re,os,glob
src, dst = (folder.rstrip('/') + '/' for folder in sys.argv[1:3])
def launches(s):
    while '<<<' in s:
        i=s.index('<<<'); j=s.index('>>>',i); cfg=s[i+3:j]
        # depth-aware end of config not needed
        k=j+3; assert s[k]=='('; d=0; e=k
        while True:
            if s[e]=='(': d+=1
            if s[e]==')':
                d-=1
                if d==0: break
            e+=1
        args=s[k+1:e]
        b=i-1
        while s[b].isspace(): b-=1
        if s[b]=='>':
            d=0
            while True:
                if s[b]=='>': d+=1
                if s[b]=='<':
                    d-=1
                    if d==0: break
                b-=1
            b-=1
        while s[b].isalnum() or s[b]=='_': b-=1
        kern=s[b+1:i].strip()
        # split cfg at top-level commas
        parts=[];d=0;cur=''
        for ch in cfg:
            if ch in '(<': d+=1
            if ch in ')>': d-=1
            if ch==',' and d==0: parts.append(cur); cur=''
            else: cur+=ch
        parts.append(cur)
        s=s[:b+1]+f'emu::launch([&] {{ {kern}({args}); }}, dim3({parts[0]}), dim3({parts[1]}))'+s[e+1:]
    return s
for f in glob.glob(src+'*'):
    b=os.path.basename(f)
    s=open(f).read()
    if b.endswith('.cu'): s=launches(s)
    if b=='mma.cuh':
        s=re.sub(r'asm\(.*?\);\n', 'emu::mma(sums, a.pair, b0, b1);\n', s, flags=re.S)
    s=s.replace('#pragma unroll\n','')
    if b=='kernels_cuda.h':
        s=s.replace('inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }','inline cudaStream_t stream() { return nullptr; }')
        s=s.replace('#pragma once','#pragma once\n#include "emu.h"',1)
    if b in('elements.cuh',): s=s.replace('#pragma once','#pragma once\n#include "emu.h"',1)
    s=s.replace('C10_CUDA_KERNEL_LAUNCH_CHECK()','(void)0').replace('C10_CUDA_CHECK(','(').replace('cudaMemsetAsync(','emu::set(').replace('cudaMemcpyAsync(','emu::cpy(')
    open(dst+b,'w').write(s)
