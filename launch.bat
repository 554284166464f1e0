@echo off
rem Starts sdtrainer, also by double-click.  Finds a Python; sdtrainer\launcher.py does the rest.
setlocal
set "LAUNCHER=%~dp0sdtrainer\launcher.py"
rem 3.14 last: packages come to the newest Python last.
for %%V in (3.13 3.12 3.11 3.14) do (
    py -%%V -I -c "import ensurepip" >nul 2>nul && (set "PYTHON=py -%%V" & goto start)
)
rem Any other Python at least gets to hear from the launcher what it lacks.
python -I -c "import sys" >nul 2>nul && (set "PYTHON=python" & goto start)
py -3 -I -c "import sys" >nul 2>nul && (set "PYTHON=py -3" & goto start)
echo sdtrainer: Install Python 3.11 to 3.14 from python.org: none was found. 1>&2
set CODE=2
goto finished

:start
%PYTHON% -I "%LAUNCHER%" %*
set CODE=%ERRORLEVEL%

:finished
rem A double-click passes no argument; its window would close before the error can be read.
if "%~1"=="" if not "%CODE%"=="0" pause
exit /b %CODE%
